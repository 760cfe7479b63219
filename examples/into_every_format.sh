#!/bin/sh
# Writes one quantization in every format that holds it, and proves that all hold the same weights.
#     sh examples/into_every_format.sh QUANTIZED FOLDER
set -e
mkdir -p "$2"
r1quant export "$1" --to awq,compressed-tensors,gguf,onnx -o "$2"
for copy in "$2"/*; do
    r1quant check "$1" "$copy" --no-logits
done
