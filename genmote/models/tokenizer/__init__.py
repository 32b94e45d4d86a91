"""Text tokenizers from a model file's own metadata: byte-level BPE and SentencePiece, over a memory-mapped table.

Start at `load_tokenizer`. ``vocabulary`` reads and checks the metadata, ``build`` makes the table (``table`` has its
layout), ``cache`` keeps it between runs, ``native/tokenizer.cpp`` encodes over it and ``twin`` does the same in Python;
``variants`` and ``pattern`` say how byte-level BPE cuts words.
"""

from genmote.models.tokenizer.core import GrammarVocabulary, StreamDecoder, Tokenizer, load_tokenizer

__all__ = ["GrammarVocabulary", "StreamDecoder", "Tokenizer", "load_tokenizer"]
