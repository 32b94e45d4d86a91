"""The compress set: what `make bench-compress` measures, our recipes beside llama.cpp's quantiser."""
