"""Files of many kinds to blocks that know where they stand."""
