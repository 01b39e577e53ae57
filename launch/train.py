"""The entry point in a clone; `python -m nfnets_tf.launch` is the same.

python launch/train.py --gin_file=gin/quickstart.gin
"""

from nfnets_tf import launch

if __name__ == "__main__":
  launch.run()
