"""What run_conformance.py and compare_peers.py run inside other programs' environments, and how those are built.

*_reader.py, *_make.py, *_quantize.py   run there: they import foreign.py and the other program, nothing of r1quant
NAME.txt, NAME-no-deps.txt   the packages of the environment NAME, pinned
"""
