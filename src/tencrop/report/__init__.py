"""From run folders to a report: collects results, compares them with the papers' errors, writes tables and a page."""
