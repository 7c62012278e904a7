"""The systems that X-STA is compared with (section 4.3)."""
