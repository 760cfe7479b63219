"""python -m r1quant"""

from r1quant.cli import main

if __name__ == "__main__":
    main()
