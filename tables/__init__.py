"""The papers' tables: their numbers, what produces each row, and the comparison of both."""
