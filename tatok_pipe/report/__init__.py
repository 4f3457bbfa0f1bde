"""The report on a token dataset: its figures, its charts, a few of its images, and the page that shows them."""
