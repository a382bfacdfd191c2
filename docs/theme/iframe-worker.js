// Search in a site that is opened as files. Browsers refuse a Worker there, so its script runs in a hidden frame.
"use strict"

function load(frame, url) {
  return new Promise((loaded, failed) => {
    const script = frame.document.createElement("script")
    Object.assign(script, { src: new URL(url, document.baseURI).href, onload: loaded, onerror: failed })
    frame.document.head.append(script)
  })
}

class FrameWorker extends EventTarget {
  constructor(url) {
    super()
    const element = document.createElement("iframe")
    element.hidden = true
    document.body.append(element)
    this.frame = element.contentWindow
    this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    this.frame.importScripts = (...urls) =>
      urls.reduce((earlier, next) => earlier.then(() => load(this.frame, next)), Promise.resolve())
    this.ready = load(this.frame, url)
  }

  postMessage(data) {
    this.ready.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data })))
  }

  terminate() {
    this.frame.frameElement.remove()
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker
