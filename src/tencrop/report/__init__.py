"""From run folders to a page: collect results, set them beside the papers' numbers, draw what was learned."""
