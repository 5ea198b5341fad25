"""Laws of the functions beside a loss: advantages, KL estimators and divergences."""
