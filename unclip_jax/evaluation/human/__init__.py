"""Pairwise evaluation by people: pages for raters, and what their answers say."""
