"""What stands between a tokenizer and VIM, and between VIM and its images: tokens, the classifier, files."""
