"""A model for others: a folder with weights, tokenizer and model card, and its upload to the Hugging Face Hub."""
