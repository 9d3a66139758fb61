"""Linear SVMs as the low-shot papers train and score them."""
