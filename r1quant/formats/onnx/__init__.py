"""ONNX models for onnxruntime and onnxruntime-genai: options, writer and reader.

`options` says what can be chosen and what can be stored, and loads at once; `writer` and `reader` need the onnx
package.
"""
