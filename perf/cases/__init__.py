"""What is looked at, and what it should give: shapes, branches of the plans, targets, textbook results, checks.

Nothing here measures, counts or shows anything.
"""
