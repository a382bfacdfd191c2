"""`lion import`: configs of axolotl, LLaMA-Factory, TRL and alignment-handbook as configs of `lion fit`."""
