"""Models behind one protocol (``model``): the fast path of the Llama family, and all of transformers' decoders."""
