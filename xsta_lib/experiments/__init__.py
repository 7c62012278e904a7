"""What is trained and compared, its results, and the tables made of them."""
