"""The speed suite: each operation beside a parallel copy of its matrix (`test_speed`, `report`)."""
