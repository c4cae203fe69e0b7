from pal_dist.cli import main

main()
