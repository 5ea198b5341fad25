"""A model's weights in other forms than they are stored in: in 4 bits, or narrow for the length of a call."""
