"""`python -m examples.mask_rcnn`."""

import sys

from examples.mask_rcnn.run import main

sys.exit(main())
