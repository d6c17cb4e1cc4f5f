"""Estimators of scikit-learn, fitted. Imported by fixtures: it takes seconds, which only those who use them are to pay."""

from typing import Any

from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

IRIS = load_iris()
NAMES = IRIS.target_names[IRIS.target]
TEXTS = ["good film", "bad film", "good good", "awful bad", "a good one", "bad"]
LIKES = ["yes", "no", "yes", "no", "yes", "no"]

ESTIMATORS = {
    "logistic": LogisticRegression(max_iter=1000).fit(IRIS.data, NAMES),
    "scaled": make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS.data, IRIS.target),
    "forest": RandomForestClassifier(5, random_state=0).fit(IRIS.data, NAMES),
    "boosting": HistGradientBoostingClassifier(max_iter=5).fit(*load_breast_cancer(return_X_y=True)),
    "support": LinearSVC().fit(IRIS.data, IRIS.target),
    "linear": LinearRegression().fit(IRIS.data, IRIS.target),
    "clusters": KMeans(3, random_state=0, n_init=1).fit(IRIS.data),
    "scaler": StandardScaler().fit(IRIS.data),
}


def of_texts(*, lowercase: bool) -> Any:
    return make_pipeline(TfidfVectorizer(lowercase=lowercase), LogisticRegression()).fit(TEXTS, LIKES)


def another() -> Any:
    """Like "logistic", with other answers."""
    return LogisticRegression(max_iter=1000, C=0.01).fit(IRIS.data, NAMES)
