"""A comparison's report: tables, figures, one page. What it says is worked out in compare/."""
