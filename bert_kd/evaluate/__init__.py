"""Measuring teacher, students and twins, and the report that shows it."""
