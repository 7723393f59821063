# SPDX-License-Identifier: Apache-2.0
"""Reflectance and relighting, for queries in other light than the training views."""
