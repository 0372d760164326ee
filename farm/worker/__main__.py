"""``python -m farm.worker``: one worker process; the device comes from FARM_DEVICE."""

from farm.worker.main import main

if __name__ == "__main__":
    main()
