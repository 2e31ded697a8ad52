"""`python -m bs_ray` is `bs-ray`."""

from bs_ray.cli import main

if __name__ == "__main__":
    main()
