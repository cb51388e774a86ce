"""The quickstart's tokenizer and teacher, trained by this harness."""
