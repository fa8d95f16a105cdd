"""Generated clips whose content is known, and judges that read it back from pixels."""
