"""`python -m bs_ray` does what `bs-ray` does."""

from bs_ray.cli import main

if __name__ == "__main__":
    main()
