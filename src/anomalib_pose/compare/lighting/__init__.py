# SPDX-License-Identifier: Apache-2.0
"""Reflectance and relighting, for queries in another light than the training views."""
