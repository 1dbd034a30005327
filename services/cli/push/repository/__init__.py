"""Models in Triton's repository layout: a folder with config.pbtxt and one folder a version.

    embedder/
      config.pbtxt
      labels.txt
      1/model.onnx
      2/model.onnx

Import it only where it is needed: the messages of config.pbtxt cannot be loaded beside tritonclient's in one process.
"""
