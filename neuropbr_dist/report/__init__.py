"""The run page: one HTML file that shows a run, opened without a server and without a network."""

from neuropbr_dist.report.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
