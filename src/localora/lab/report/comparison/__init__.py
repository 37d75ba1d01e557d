"""From records alone to tables, pictures and a page: no model, no GPU, the same bytes of numbers every time."""
