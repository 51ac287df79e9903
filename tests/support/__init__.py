"""What several tests share: cases, and Python in processes of its own."""
