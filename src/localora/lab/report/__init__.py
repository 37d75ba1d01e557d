"""Records to tables, pictures and pages. Whatever is computed here comes from records alone."""
