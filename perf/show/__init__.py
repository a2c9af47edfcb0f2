"""Results as rows, and what people see of them: tables, charts, pages. Nothing here measures anything."""
