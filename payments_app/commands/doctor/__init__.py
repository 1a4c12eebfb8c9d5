"""`flask doctor`: checks a whole installation, and says how to fix what is wrong."""
