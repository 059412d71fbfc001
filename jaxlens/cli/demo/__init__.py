"""The experiment that `jaxlens demo` runs: `experiment.py` computes, `report.py` prints, `pictures.py` draws."""
