"""Published weights in, published formats out. A family is one file and one row of families.FAMILIES."""
