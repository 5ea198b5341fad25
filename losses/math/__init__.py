"""Mathematics that several losses share: ratios, divergences, logarithms."""
