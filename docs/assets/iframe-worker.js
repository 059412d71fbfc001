// Search runs in a worker. Browsers start no worker for a page that was opened from disk. There, a frame takes the place
// of the worker: its script runs in the frame, with the functions that a worker has.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      const opened = new Promise(resolve => { this.frame.onload = resolve })
      document.documentElement.append(this.frame)
      this.ready = opened.then(() => this.start(address))
    }

    start(address) {
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = async (...addresses) => { for (const each of addresses) await this.load(each) }
      return this.load(address)
    }

    load(address) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script")
        script.src = new URL(address, document.baseURI)
        script.onload = resolve
        script.onerror = reject
        this.frame.contentDocument.body.append(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow
        inside.dispatchEvent(new inside.MessageEvent("message", { data }))
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
}
