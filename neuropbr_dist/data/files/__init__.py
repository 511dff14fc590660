"""Sets of PNG files in the guide's layout: listed, checked, decoded."""
