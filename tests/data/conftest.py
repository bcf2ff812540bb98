from tests.fixtures_data import tfds_cifar10

__all__ = ['tfds_cifar10']
