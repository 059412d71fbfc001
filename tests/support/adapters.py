"""LoRA adapters with random weights, written to disk by peft."""

import peft
import torch
import transformers


def config(*target_modules, **fields):
    targets = target_modules[0] if target_modules[:1] in (("all-linear",), (r".*\.[qo]_proj",)) else [*target_modules]
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": targets, **fields})


def torch_model(folder, kind="ForCausalLM", vocabulary=None, **options):
    auto = getattr(transformers, f"AutoModel{kind}")
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    return model


def write_adapter(folder, base, lora, *, safe=True, **options):
    """An adapter with random weights, and its model in peft, loaded from the folder."""
    model = peft.get_peft_model(torch_model(base, **options), lora)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.5 * torch.randn(parameter.shape, generator=generator)
                is_factor = "lora_" in name and "magnitude" not in name and "bias" not in name
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 if is_factor else parameter + 0.3 * noise)
    model.save_pretrained(folder, safe_serialization=safe)
    return peft.PeftModel.from_pretrained(torch_model(base, **options), folder).eval()
