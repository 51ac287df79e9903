"""Speed and quality, measured: the speed suite (`test_speed`, `report`) and scripts."""
