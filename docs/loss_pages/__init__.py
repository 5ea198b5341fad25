"""What the pages of losses say beside a card: the data a loss needs, its formula in math, and code that runs."""
