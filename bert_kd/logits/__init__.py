"""The logit cache: what teachers answered to which texts, joined by row key."""
